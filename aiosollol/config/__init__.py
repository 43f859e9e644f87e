"""What the user says: settings (`settings`, `resolve`) and files of nodes (`node_files`)."""
