"""The structures of each shipped set, before they are labelled."""
