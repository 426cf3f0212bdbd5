"""What training costs on devices that need not be here, from compiled programs alone."""
