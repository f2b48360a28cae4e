"""What all three packages stand on: configuration, errors, progress, records and their files, run directories, pages."""
