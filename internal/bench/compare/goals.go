package main

import (
	"bytes"
	"fmt"

	"github.com/vblk-ep/vblk-ep/internal/bench"
)

// goal is something that the project wants to reach.
type goal struct {
	Work    string `json:"work"`
	Measure string `json:"measure"`
	Goal    string `json:"goal"`
	Got     string `json:"got"` // "not measured" where its table is missing
	Reached bool   `json:"reached"`

	rate float64
}

// Names of rows that goals speak of, and the goals that are not a part of the limit.
const (
	oursName   = "vblk-ep"
	twoQueues  = "vblk-ep, two queues"
	guestLeast = 1.0
	idleMost   = 0.5  // percent of a core
	nullLeast  = 2e6  // requests a second
	addedMost  = 15e3 // nanoseconds
	scaleLeast = 1.8
)

// goals says how far the report is from each.
func (r *report) goals() []goal {
	list := []goal{
		r.atLeast("file", work{"read", "512k", 8}, oursName, "fio", 0.95),
		r.atLeast("file", work{"randread", "4k", 32}, oursName, "fio", 0.90),
		r.atLeast("file", work{"write", "512k", 8}, oursName, "fio", 0.90),
		r.atLeast("file", work{"randwrite", "4k", 32}, oursName, "fio", 0.90),
		r.addedLatency(), r.nullRate(),
	}
	for _, w := range guestWorks[:2] {
		for _, peer := range guestDisks[:2] {
			list = append(list, r.atLeast("guest", w, oursName, peer.name, guestLeast))
		}
	}
	list = append(list, r.atLeast("null", work{"randread", "4k", 128}, twoQueues, oursName, scaleLeast))
	for _, registers := range idleModes {
		g := goal{Work: "idle, " + registers, Measure: "server, % of a core", Goal: fmt.Sprintf("≤ %.1f", idleMost), Got: notMeasured}
		if used, ok := r.Idle[registers]; ok {
			g.Got, g.Reached = fmt.Sprintf("%.2f", used), used <= idleMost
		}
		list = append(list, g)
	}
	return list
}

const notMeasured = "not measured"

// row finds the turns of a contender at a work, nil if there are none.
func (r *report) row(table string, w work, name string) *row {
	for _, t := range r.Tables {
		for _, k := range t.Blocks {
			if t.Name != table || k.Work != w {
				continue
			}
			for _, row := range k.Rows {
				if row.Name == name {
					return row
				}
			}
		}
	}
	return nil
}

// atLeast is the goal that one contender's rate is at least a part of another's.
func (r *report) atLeast(table string, w work, name, base string, least float64) goal {
	g := goal{Work: fmt.Sprintf("%s, %v", table, w), Measure: name + " / " + base, Goal: fmt.Sprintf("≥ %.2f", least), Got: notMeasured}
	a, b := r.row(table, w, name), r.row(table, w, base)
	if a == nil || b == nil {
		return g
	}
	var ratios []float64
	for i, s := range a.Samples {
		ratios = append(ratios, s.IOPS/b.Samples[i].IOPS)
	}
	ratio := median(ratios)
	g.Got, g.Reached = fmt.Sprintf("%.2f", ratio), ratio >= least
	return g
}

// addedLatency is the goal for one request at a time.
func (r *report) addedLatency() goal {
	w := work{"randread", "4k", 1}
	g := goal{Work: fmt.Sprintf("file, %v", w), Measure: "p50 over fio's, µs", Goal: "≤ " + bench.Micros(addedMost), Got: notMeasured}
	a, b := r.row("file", w, oursName), r.row("file", w, "fio")
	if a == nil || b == nil {
		return g
	}
	var added []float64
	for i, s := range a.Samples {
		added = append(added, s.P50-b.Samples[i].P50)
	}
	g.Got, g.Reached = bench.Micros(median(added)), median(added) <= addedMost
	return g
}

// nullRate is the goal for a polling server with a processor of its own: with the
// driver that suits it better.
func (r *report) nullRate() goal {
	w := work{"randread", "4k", 128}
	g := goal{Work: fmt.Sprintf("null, %v", w), Measure: "requests a second, polling", Goal: "≥ " + bench.Rate(nullLeast), Got: notMeasured}
	for _, name := range []string{"vblk-ep, polling", "vblk-ep, polling server"} {
		if row := r.row("null", w, name); row != nil && (g.Got == notMeasured || row.Median.IOPS > g.rate) {
			g.rate = row.Median.IOPS
			g.Got, g.Reached = fmt.Sprintf("%s (best %s)", bench.Rate(g.rate), bench.Rate(row.Best)), g.rate >= nullLeast
		}
	}
	return g
}

func printGoals(b *bytes.Buffer, list []goal) {
	fmt.Fprint(b, "\n## Goals\n\n| work | measure | goal | got | |\n|---|---|---|---|---|\n")
	for _, g := range list {
		verdict := "no"
		switch {
		case g.Got == notMeasured:
			verdict = ""
		case g.Reached:
			verdict = "yes"
		}
		fmt.Fprintf(b, "| %s | %s | %s | %s | %s |\n", g.Work, g.Measure, g.Goal, g.Got, verdict)
	}
}
