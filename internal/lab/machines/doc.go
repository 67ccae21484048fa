// Package machines starts the two guests of the endpoint lab and the link between
// them, and runs shell scripts in both.
//
// It stands on internal/lab, which is the link, and on internal/vm, which boots
// guests. Tests and the program of "make lab" use it. What the guests do, it
// does not know.
package machines
