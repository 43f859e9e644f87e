"""User configuration: settings (`settings`, `resolve`) and files of nodes (`files`)."""
