"""The common parts of the engines: the remote pool of a worker, and the leases of workers."""
