package virtiopci

// Bits of the ISR status byte, which a read clears (§4.1.4.5). It serves devices
// without MSI-X.
const (
	ISRQueue  = 1 << 0 // a used buffer notification
	ISRConfig = 1 << 1 // a configuration change

	// ISRLen is the length of the ISR structure.
	ISRLen = 1
)
