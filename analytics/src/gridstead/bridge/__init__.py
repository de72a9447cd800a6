"""The bridge: moves the broker's queues to Kafka topics, at least once."""
