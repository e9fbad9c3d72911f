"""What is made out of runs: tables and plots."""
