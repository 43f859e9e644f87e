"""Pure decisions: no waiting, clock, random numbers or sockets."""
