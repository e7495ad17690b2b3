"""Jobs: runs the stages of dvc.yaml that are out of date, several at a time, in the order that DVC's graph allows."""
