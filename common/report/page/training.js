// The report of a training: losses and validation over epochs, with the epoch whose weights were kept.

function showTraining() {
  return [];
}
