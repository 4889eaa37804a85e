"""What people have (strings, chats, images, sounds, what a processor returned), made the inputs of a call of the model."""
