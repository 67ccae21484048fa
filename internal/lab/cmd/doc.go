// Command cmd starts the endpoint lab and gives it to whoever sits before it: two
// guests with a console each, the link between them, and faults on command. "make
// lab" runs it.
package main
