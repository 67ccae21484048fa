#include "textflag.h"

// func fence()
TEXT ·fence(SB), NOSPLIT, $0-0
	MFENCE
	RET

// func pause()
TEXT ·pause(SB), NOSPLIT, $0-0
	PAUSE
	RET

// func prefetch(p *byte)
TEXT ·prefetch(SB), NOSPLIT, $0-8
	MOVQ p+0(FP), AX
	PREFETCHT0 (AX)
	RET

// func store16(p *uint16, v uint16)
// Stores are not reordered with earlier ones on this machine.
TEXT ·store16(SB), NOSPLIT, $0-10
	MOVQ p+0(FP), AX
	MOVW v+8(FP), CX
	MOVW CX, (AX)
	RET

// func load16(p *uint16) uint16
// Loads are not reordered with later accesses on this machine.
TEXT ·load16(SB), NOSPLIT, $0-10
	MOVQ p+0(FP), AX
	MOVWLZX (AX), CX
	MOVW CX, ret+8(FP)
	RET
