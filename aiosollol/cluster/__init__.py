"""What is known of all nodes, and the tasks that keep it up to date."""
