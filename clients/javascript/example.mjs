// node example.mjs NAME STUDY: minimises a parabola in x, as if it were a training of ten epochs.
import { setTimeout as sleep } from 'node:timers/promises'
import { run } from './bayesd-worker.mjs'

const [name = 'js-1', study = 'parabola'] = process.argv.slice(2)
const leaving = new AbortController()
for (const signal of ['SIGTERM', 'SIGINT']) process.once(signal, () => leaving.abort())

const why = await run(
  { broker: process.env.BAYESD_BROKER, name, study, slots: 2, signal: leaving.signal },
  async trial => {
    let loss = Infinity
    for (let epoch = 0; epoch < 10; epoch++) {
      await sleep(100, null, { signal: trial.signal }) // throws when the daemon wants the trial to end
      loss = (trial.params.x - 0.3) ** 2 + 1 / (epoch + 1)
      trial.report(loss, epoch)
    }
    return loss
  },
)
console.log(`the worker ends: ${why}`)
