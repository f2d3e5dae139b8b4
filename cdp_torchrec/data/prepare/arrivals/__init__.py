"""Logs that go on: an inbox of files, and topics of Kafka that land in it."""
