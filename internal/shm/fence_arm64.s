#include "textflag.h"

// func fence()
// DMB SY: the other side may be a bus master outside the inner-shareable domain.
TEXT ·fence(SB), NOSPLIT, $0-0
	DMB $0xf
	RET

// func pause()
// ISB waits for the pipeline to drain; YIELD does nothing on most cores.
TEXT ·pause(SB), NOSPLIT, $0-0
	ISB $15
	RET

// func prefetch(p *byte)
TEXT ·prefetch(SB), NOSPLIT, $0-8
	MOVD p+0(FP), R0
	PRFM (R0), PLDL1KEEP
	RET

// func store16(p *uint16, v uint16)
TEXT ·store16(SB), NOSPLIT, $0-10
	MOVD p+0(FP), R0
	MOVHU v+8(FP), R1
	STLRH R1, (R0)
	RET

// func load16(p *uint16) uint16
TEXT ·load16(SB), NOSPLIT, $0-10
	MOVD p+0(FP), R0
	LDARH (R0), R1
	MOVH R1, ret+8(FP)
	RET
