"""What runs IVM-Mix: command line, configuration, plan, Ray Data graph, shard store, table schemas, mask codecs."""
