"""What every other subpackage may use: errors, names of sources, permissions, logs, metrics."""
