"""User configuration: settings (`settings`, `resolve`) and nodes files (`node_files`)."""
