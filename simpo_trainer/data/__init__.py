"""Preference data: from files, folders and the Hub to token rows."""
