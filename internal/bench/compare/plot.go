package main

import (
	"bytes"
	"fmt"
	"html"

	"github.com/vblk-ep/vblk-ep/internal/bench"
)

// Measures of a plot in pixels.
const (
	plotLabel  = 250 // room for names
	plotWidth  = 460 // of the longest bar
	plotRight  = 190 // room for figures
	barHeight  = 16
	barStep    = 20
	blockSpace = 34
)

var colours = []string{"#555555", "#1f6fb4", "#5aa9e0", "#2a9d63", "#e08a2e", "#b04a8f"}

// plot draws a bar for each contender, works below one another, each scaled to its
// own longest bar; with the median IOPS and the ratio to the first contender.
func (t *table) plot() []byte {
	height := 20
	for _, k := range t.Blocks {
		height += blockSpace + len(k.Rows)*barStep
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12">`+"\n",
		plotLabel+plotWidth+plotRight, height)
	fmt.Fprintln(&b, `<rect width="100%" height="100%" fill="white"/>`)
	y := 10
	for _, k := range t.Blocks {
		most := 0.0
		for _, r := range k.Rows {
			most = max(most, r.Median.IOPS)
		}
		fmt.Fprintf(&b, `<text x="10" y="%d" font-weight="bold">%s: %v</text>`+"\n", y+16, html.EscapeString(t.Name), k.Work)
		y += blockSpace - 8
		for i, r := range k.Rows {
			width := plotWidth * r.Median.IOPS / most
			fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">%s</text>`+"\n", plotLabel-8, y+12, html.EscapeString(r.Name))
			fmt.Fprintf(&b, `<rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/>`+"\n", plotLabel, y, width, barHeight, colours[i%len(colours)])
			fmt.Fprintf(&b, `<text x="%.1f" y="%d">%s IOPS, %.2f</text>`+"\n", plotLabel+width+6, y+12, bench.Rate(r.Median.IOPS), r.Ratio)
			y += barStep
		}
		y += 8
	}
	fmt.Fprintln(&b, "</svg>")
	return b.Bytes()
}
