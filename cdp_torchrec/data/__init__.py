"""From raw logs to batches: schema, preparation, history store, reader."""
