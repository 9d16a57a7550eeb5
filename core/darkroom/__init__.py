"""What all parts share: jobs, settings, errors, logs, and a package for each further subject."""
