//! What asks for a deployment. (skeleton)
