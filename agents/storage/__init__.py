"""The storage element: keeps files of virtual organisations, whole or not at all, and proves it by checksums."""
