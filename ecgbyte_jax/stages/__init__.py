"""The stages of a run, a file for each value of --stage, and the table of what each depends on."""
