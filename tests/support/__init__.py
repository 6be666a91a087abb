"""What tests share: real servers, waiting with a deadline, builders."""
