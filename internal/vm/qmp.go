package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
)

// qmp speaks QEMU's machine protocol on one port.
type qmp struct {
	port *port

	mu      sync.Mutex
	nextID  uint64
	waiting map[uint64]chan qmpMessage
	ended   bool
	events  map[string]int

	greeting chan struct{} // closed when QEMU is ready for commands
	resets   chan struct{} // holds one while the machine was reset and nobody looked
}

type qmpMessage struct {
	Greeting json.RawMessage `json:"QMP"`
	Event    string          `json:"event"`
	ID       *uint64         `json:"id"`
	Return   json.RawMessage `json:"return"`
	Error    *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
}

func newQMP(p *port) *qmp {
	return &qmp{
		port:     p,
		waiting:  make(map[uint64]chan qmpMessage),
		events:   make(map[string]int),
		greeting: make(chan struct{}),
		resets:   make(chan struct{}, 1),
	}
}

// listen reads until the port closes.
func (q *qmp) listen() {
	dec := json.NewDecoder(q.port)
	for {
		var m qmpMessage
		if err := dec.Decode(&m); err != nil {
			break
		}
		q.take(m)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.ended = true
	for id, c := range q.waiting {
		close(c)
		delete(q.waiting, id)
	}
}

func (q *qmp) take(m qmpMessage) {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case m.Greeting != nil:
		close(q.greeting)
	case m.Event != "":
		q.events[m.Event]++
		if m.Event == "RESET" {
			select {
			case q.resets <- struct{}{}:
			default:
			}
		}
	case m.ID != nil:
		if c, ok := q.waiting[*m.ID]; ok {
			c <- m
			delete(q.waiting, *m.ID)
		}
	}
}

// count returns how often the event has happened.
func (q *qmp) count(event string) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.events[event]
}

var errQMPEnded = errors.New("QEMU has ended")

// call runs one command and returns its result.
func (q *qmp) call(ctx context.Context, command string, args any) (json.RawMessage, error) {
	answer := make(chan qmpMessage, 1)
	q.mu.Lock()
	if q.ended {
		q.mu.Unlock()
		return nil, fmt.Errorf("vm: QMP %s: %w", command, errQMPEnded)
	}
	q.nextID++
	id := q.nextID
	q.waiting[id] = answer
	text, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        uint64 `json:"id"`
	}{command, args, id})
	if err == nil {
		_, err = q.port.Write(text)
	}
	q.mu.Unlock()
	if err != nil {
		return nil, fmt.Errorf("vm: QMP %s: %w", command, err)
	}
	select {
	case m, ok := <-answer:
		if !ok {
			return nil, fmt.Errorf("vm: QMP %s: %w", command, errQMPEnded)
		}
		if m.Error != nil {
			return nil, fmt.Errorf("vm: QMP %s: %s: %s", command, m.Error.Class, m.Error.Desc)
		}
		return m.Return, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("vm: QMP %s: %w", command, context.Cause(ctx))
	}
}
