"""The credential store: keeps proxies of people, encrypted, and delegates from them by the MyProxy protocol."""
