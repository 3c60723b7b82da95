"""How a chip that is wired to the gateway is reached: a wire, and what its boot ROM or debug probe speaks on it."""
