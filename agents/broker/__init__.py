"""The resource broker: takes JDL, finds a computing element, delivers, resubmits."""
