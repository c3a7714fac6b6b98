"""Requests in, tokens out: scheduler, batch, runner, sampling. Speaks token ids only."""
