"""What differs from release to release. Builds replace this file."""

VERSION = "0.0.0"
