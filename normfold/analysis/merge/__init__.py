"""What can be merged once every norm has its place: branches, maps between stored tensors."""
