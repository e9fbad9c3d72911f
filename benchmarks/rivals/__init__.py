"""What offbeat is measured against, each in the form that its own documentation gives."""
