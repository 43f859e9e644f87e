"""Pure decisions: nothing here waits, reads a clock, draws random numbers or opens a socket."""
