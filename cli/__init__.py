"""What people type: arguments, messages, files and exit codes. No codec logic."""
