"""The version of xpyd: one place, read by the command line, the API and the messages."""

VERSION = "0.1.0"
