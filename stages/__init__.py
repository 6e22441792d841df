"""What happens to a shard, one module per stage. Nothing here knows Ray or where a shard is stored."""
