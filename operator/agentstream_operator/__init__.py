"""The operator of AgentStream: from declared resources to streams, groups, access and consumers."""
