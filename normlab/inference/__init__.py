"""What numbers of repeated runs allow to conclude: arrays in, estimates and verdicts out."""
