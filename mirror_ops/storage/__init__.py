"""Values that outlive a session, as files that are checked before anything is made of them."""
