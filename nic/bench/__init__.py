"""What `nic bench` runs: codecs, metrics, measuring, comparing, and the report. Needs the bench group's packages."""
