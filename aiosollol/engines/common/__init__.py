"""What the engines share: a pool in a worker, and the leases its workers get."""
