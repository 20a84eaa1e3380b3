// A bayesd worker: asks for trials over MQTT, trains them, tells the results. See README.md.
//
// The daemon may be away, every message may be lost or come twice, and this process may die at any moment. So what we
// owe the daemon is state (leases with or without a tell, asks), `advance` sends whatever of it is due, and only a
// receipt takes something off the list. The leases are kept in files too, one each, for the process that comes after.
import { createHmac, randomBytes, timingSafeEqual } from 'node:crypto'
import fs from 'node:fs'
import { homedir, hostname } from 'node:os'
import { join } from 'node:path'
import mqtt from 'mqtt'

const NAME = /^[a-z0-9][a-z0-9._-]{0,63}$/
const CLASSES = ['crash', 'timeout', 'oom', 'nonfinite', 'other']
const MESSAGE_BYTES_MAX = 60 * 1024
const TIMES_MS = { tick: 500, ask: 30_000, tell: 2_000, tellMost: 60_000, report: 1_000, leave: 10_000 }

/** Whether a signed head is newer than another one: of another log, of a later branch of it, or larger. */
function isNewer(note, than) {
  const read = (text) => /^(.+)\n(\d{1,16})\n.*\n(?:branch (\d{1,16})\n)?/.exec(text ?? '')
  const [a, b] = [read(note), read(than)]
  if (a === null || b === null || a[1] !== b[1]) return a !== null
  const branches = Number(a[3] ?? 0) - Number(b[3] ?? 0)
  return branches > 0 || (branches === 0 && Number(a[2]) > Number(b[2]))
}

export class NameInUse extends Error {}

/**
 * Work for a study until it closes (then the promise is 'closed') or `signal` aborts ('stopped').
 * The objective gets a trial { study, trial, fence, params, fidelity, signal, report(value, step) } and returns a
 * number or the fields of a tell, such as { values: { loss, size }, cost }; throwing is a failure of the trial.
 */
export function run(options, objective) {
  return new Promise((resolve, reject) => new Worker(options, objective, resolve, reject).start())
}

class Worker {
  run = randomBytes(8).toString('hex')
  leases = new Map() // key -> { grant, starts, tell?, controller?, … }: what the beats list
  asks = new Map() // id -> when it is sent again
  settled = new Set() // keys that are never trained again
  training = 0 // objectives that have not returned, stopped ones among them
  asked = 0
  beatAt = 0
  epoch = null
  seen = undefined // the signed head of the daemon's log; asks show it, so that a log that went back is noticed
  log = null // the daemon's log: what its topic claims, and with a key, once `sure`, what it has proved
  nonce = undefined
  doubted = new Set() // what was said about messages that we did not believe
  count = 0
  leaving = null // why no new trial is wanted: 'closed', 'stopped' or an error

  constructor({ broker = 'mqtt://127.0.0.1:1883', root, name, study, slots = 1, spool, signal, times, connect, signKey }, objective, resolve, reject) {
    for (const word of [name, study]) if (!NAME.test(word)) throw new TypeError(`not a name: ${word}`)
    const state = process.env.XDG_STATE_HOME || join(homedir(), '.local/state')
    spool ??= join(state, 'bayesd/javascript', name)
    Object.assign(this, { broker, name, study, slots, spool, signal, connect, objective, resolve, reject })
    this.topics = root ? `${root}/bayesd/1` : 'bayesd/1'
    this.times = { ...TIMES_MS, ...times }
    signKey ??= process.env.BAYESD_SIGN_KEY_FILE
    this.key = signKey ? readKey(signKey) : null
  }

  start() {
    fs.mkdirSync(join(this.spool, 'rejected'), { recursive: true })
    for (const file of fs.readdirSync(this.spool).filter(file => file.endsWith('.json'))) this.inherit(file)
    const status = { topic: `${this.topics}/worker/${this.name}`, retain: true, qos: 1 }
    this.client = mqtt.connect(this.broker, {
      clientId: `bayesd-${this.name}-${this.run}`,
      will: { ...status, payload: JSON.stringify({ state: 'offline', run: this.run }) },
      resubscribe: false, queueQoSZero: false, // we say everything again ourselves, the beat first
      ...this.connect,
    })
    this.client.on('connect', () => {
      const online = { state: 'online', run: this.run, host: hostname(), slots: this.slots }
      this.client.publish(status.topic, JSON.stringify(online), status)
      this.client.subscribe([`${this.topics}/to/${this.name}/+`, `${this.topics}/daemon`, `${this.topics}/head`])
      this.sayAgain()
    })
    this.client.on('message', (topic, payload) => this.hear(topic.split('/').at(-1), topic, payload))
    this.client.on('error', ({ message }) => { // it connects again by itself
      if (message !== this.trouble) console.error(`bayesd worker ${this.name}: ${this.trouble = message}`)
    })
    this.clock = setInterval(() => this.advance(), this.times.tick)
    this.signal?.addEventListener('abort', () => this.leave('stopped'), { once: true })
    if (this.signal?.aborted) this.leave('stopped')
  }

  // --- What we say ---

  publish(kind, message) {
    if (!this.client.connected || (this.key && this.log === null)) return // it is sent again
    const topic = `from/${this.name}/${kind}`
    this.client.publish(`${this.topics}/${topic}`, this.key ? this.signed(topic, kind, message) : JSON.stringify(message))
  }

  /** The envelope of a message. Receipts answer to its id, so the id says which process may believe them. */
  signed(topic, kind, message) {
    const stamped = kind === 'ask' || kind === 'beat'
    const added = stamped ? { nonce: this.nonce, count: ++this.count } : { id: `${message.id}:${this.run}` }
    const text = JSON.stringify({ ...message, ...added })
    return JSON.stringify({ signed: text, mac: this.mac(this.leaseLog(message) ?? this.log, topic, text) })
  }

  mac(log, topic, text) {
    return createHmac('sha256', this.key).update(`bayesd/1\n${log}\n${topic}\n${text}`).digest('hex')
  }

  /** A result belongs to the log that its grant came from, whatever the topic claims now. */
  leaseLog({ study, trial, fence }) {
    return this.leases.get(keyOf({ study, trial, fence }))?.log
  }

  /** What the daemon has said to this process; null when anybody may have said it. */
  believed(kind, topic, payload) {
    let envelope
    try { envelope = JSON.parse(payload) } catch { return null }
    const { signed: text, mac } = envelope ?? {}
    if (typeof text !== 'string' || typeof mac !== 'string' || !/^[0-9a-f]{64}$/.test(mac) || this.log === null) {
      return this.doubt(envelope)
    }
    const made = this.mac(this.log, topic.slice(this.topics.length + 1), text)
    if (!timingSafeEqual(Buffer.from(made), Buffer.from(mac))) return this.doubt(envelope)
    const message = JSON.parse(text)
    if (kind === 'stop') return this.sure ? message : null
    const ours = `:${this.run}`
    if (kind === 'receipt' && message.id.endsWith(ours)) message.id = message.id.slice(0, -ours.length)
    else if (message.run !== this.run) return null // said to another process of this name
    this.sure = true
    return message
  }

  doubt(envelope) {
    const words = `a message that the daemon did not sign with our key was ignored${typeof envelope?.detail === 'string' ? `; it says: ${JSON.stringify(envelope.detail.slice(0, 300))}` : ''}`
    if (this.doubted.size < 10 && !this.doubted.has(words)) console.error(`bayesd worker ${this.name}: ${words}`)
    this.doubted.add(words)
    return null
  }

  sayAgain() {
    this.beatAt = 0
    for (const lease of this.leases.values()) lease.sendAt = 0
    for (const id of this.asks.keys()) this.asks.set(id, 0)
    this.advance()
  }

  /** Starts what is queued and sends what is due, in the contract's order: beat, tells, asks. */
  advance() {
    if (this.ended) return
    const now = performance.now()
    for (const lease of this.leases.values()) {
      if (!lease.tell && !lease.controller && this.training < this.slots) this.train(lease)
    }
    const free = this.leaving ? 0 : this.slots - this.training - this.queued()
    while (this.asks.size < free) this.asks.set(`${this.run}.${++this.asked}`, 0)
    if (this.client.connected) {
      if (now >= this.beatAt && !this.fenced) this.beat(now)
      for (const lease of this.leases.values()) {
        if (lease.tell && now >= lease.sendAt) {
          this.publish('tell', lease.tell)
          lease.sendAt = now + lease.pause * (0.75 + Math.random() / 2)
          lease.pause = Math.min(lease.pause * 2, this.times.tellMost)
        }
        if (lease.report && !lease.tell && now >= lease.reportAt) {
          this.publish('report', lease.report)
          Object.assign(lease, { report: null, reportAt: now + this.times.report })
        }
      }
      for (const [id, at] of this.asks) {
        if (now < at) continue
        this.publish('ask', { id, run: this.run, study: this.study, n: this.leaving ? 0 : 1, seen: this.seen }) // 0 withdraws it
        this.asks.set(id, now + this.times.ask)
      }
    }
    const idle = this.leases.size === 0 && this.asks.size === 0
    if (this.leaving && (idle || now >= this.leaveAt)) this.end()
  }

  beat(now) {
    const leases = [...this.leases.values()].map(({ grant: { study, trial, fence } }) => [study, trial, fence])
    this.publish('beat', { run: this.run, leases, asks: [...this.asks.keys()] })
    this.beatAt = now + Math.min(...[...this.leases.values()].map(lease => (lease.grant.lease_s * 1000) / 3))
  }

  queued() {
    return [...this.leases.values()].filter(lease => !lease.tell && !lease.controller).length
  }

  // --- What we keep ---

  inherit(file) {
    const lease = { ...JSON.parse(fs.readFileSync(join(this.spool, file), 'utf8')), sendAt: 0, pause: this.times.tell }
    const key = keyOf(lease.grant)
    this.leases.set(key, lease)
    if (lease.tell) return
    if (lease.starts >= 2) this.tell(key, { state: 'fail', class: 'crash', error: 'the worker died twice during this trial' })
    else if (lease.grant.study !== this.study) this.tell(key, { state: 'released' })
  }

  keep(key) {
    const { grant, starts, tell, log } = this.leases.get(key)
    write(this.spool, `${key}.json`, JSON.stringify({ grant, starts, tell, log }))
  }

  tell(key, fields) {
    const lease = this.leases.get(key)
    const { study, trial, fence } = lease.grant
    const name = { id: `t.${key}`, study, trial, fence }
    lease.tell = { ...fields, ...name }
    if (Buffer.byteLength(JSON.stringify(lease.tell)) > MESSAGE_BYTES_MAX) {
      lease.tell = { ...name, state: 'fail', class: 'other', error: 'the result is too large for a message' }
    }
    Object.assign(lease, { sendAt: 0, pause: this.times.tell })
    this.keep(key)
  }

  settle(key) {
    this.leases.delete(key)
    this.settled.add(key)
    fs.rmSync(join(this.spool, `${key}.json`), { force: true })
  }

  // --- The training ---

  async train(lease) {
    const key = keyOf(lease.grant)
    Object.assign(lease, { starts: lease.starts + 1, controller: new AbortController(), reportAt: 0 })
    this.training += 1
    this.keep(key)
    const { study, trial, fence, params, fidelity } = lease.grant
    const report = (value, step) => {
      lease.report = { id: `r.${key}.${step}`, study, trial, fence, step, ...fieldsOf(value) }
      this.advance()
    }
    const started = performance.now()
    let fields
    try {
      fields = fieldsOf(await this.objective({ study, trial, fence, params, fidelity, report, signal: lease.controller.signal }))
    } catch (error) {
      const kind = CLASSES.includes(error?.class) ? error.class : 'crash'
      fields = { state: 'fail', class: kind, error: cut(String(error?.stack ?? error)) }
    }
    this.training -= 1
    if (this.leases.get(key) === lease && !lease.tell) {
      this.tell(key, lease.pruned ? { state: 'pruned' } : { ...fields, seconds: (performance.now() - started) / 1000 })
    }
    this.advance()
  }

  // --- What we hear ---

  hear(kind, topic, payload) {
    let message
    if (this.key && topic.startsWith(`${this.topics}/to/`)) message = this.believed(kind, topic, payload)
    else try { message = JSON.parse(payload) } catch { return } // such as a retained topic that was emptied
    if (!message) return
    if (this.key && kind === 'daemon' && !this.hearDaemon(message)) return
    if (this.key && kind === 'head' && !String(message.note).startsWith(`bayesd/${this.log}\n`)) return
    if (kind === 'grant') this.granted(message)
    if (kind === 'stop') this.stopped(keyOf(message), message.reason)
    if (kind === 'receipt') this.received(message)
    if (kind === 'head' && isNewer(message.note, this.seen)) this.seen = message.note
    if (kind === 'daemon' && message.epoch !== this.epoch) {
      this.epoch = message.epoch
      this.sayAgain()
    }
    this.advance()
  }

  /** With a key the topic is only a claim: a log that has proved itself is not given up for another name. */
  hearDaemon({ log, nonce }) {
    if (typeof log !== 'string' || (this.sure && log !== this.log)) return false
    const first = this.log === null
    Object.assign(this, { log, nonce })
    if (first) this.sayAgain()
    return true
  }

  granted(grant) {
    if (grant.run !== this.run || !NAME.test(grant.study) || !Number.isInteger(grant.trial + grant.fence)) return
    this.asks.delete(grant.ask)
    const key = keyOf(grant)
    const lease = this.leases.get(key)
    if (lease) lease.sendAt = 0 // training, and the copy is ignored; or told, and the tell goes once more
    if (lease || this.settled.has(key)) return
    const full = this.leaving || this.training + this.queued() >= this.slots
    this.leases.set(key, { grant, starts: 0, ...(this.key && { log: this.log }) })
    if (full) this.tell(key, { state: 'released' })
    this.beatAt = Math.min(this.beatAt, performance.now() + (grant.lease_s * 1000) / 3)
  }

  stopped(key, reason) {
    const lease = this.leases.get(key)
    if (!lease) this.settled.add(key) // the grant is still on its way
    if (!lease || lease.tell) return // and a tell is sent until its receipt, whatever was stopped
    lease.controller?.abort()
    if (reason !== 'pruned') this.settle(key)
    else if (lease.controller) lease.pruned = true // told when the objective has returned
    else this.tell(key, { state: 'pruned' })
  }

  received({ id, run, status, reason, detail, stop, retry_after_s: pause_s }) {
    const now = performance.now()
    const [key, lease] = [...this.leases].find(([, lease]) => lease.tell?.id === id) ?? []
    if (lease) {
      if (pause_s) lease.sendAt = now + pause_s * 1000
      else {
        if (status === 'rejected') fs.copyFileSync(join(this.spool, `${key}.json`), join(this.spool, 'rejected', `${key}.json`))
        this.settle(key)
      }
    } else if (stop && id?.startsWith('r.')) {
      this.stopped(id.slice(2, id.lastIndexOf('.')), stop)
    } else if (run === this.run && reason === 'name-in-use') {
      this.fence()
    } else if (run === this.run && this.asks.has(id)) {
      if (pause_s) this.asks.set(id, now + pause_s * 1000)
      else if (status !== 'waiting') this.asks.delete(id)
      if (status === 'closed' && !this.leaving) Object.assign(this, { leaving: 'closed', leaveAt: Infinity })
      if (status === 'rejected' && !pause_s) this.leave(new Error(`the daemon refuses to be asked: ${detail ?? reason}`))
    }
  }

  // --- The end ---

  /** Gives back what is not finished, and ends when the receipts have come. */
  leave(why) {
    Object.assign(this, { leaving: why, leaveAt: performance.now() + this.times.leave })
    for (const [id] of this.asks) this.asks.set(id, 0)
    for (const [key, lease] of this.leases) {
      lease.controller?.abort()
      if (!lease.tell) this.tell(key, { state: 'released' })
    }
    this.advance()
  }

  /** Another process has our name: it is given everything but the tells, which count as always. */
  fence() {
    Object.assign(this, { fenced: true, leaving: new NameInUse(`another process uses the name ${this.name}`), leaveAt: Infinity })
    this.asks.clear()
    for (const [key, lease] of this.leases) if (!lease.tell) this.stopped(key, 'name-in-use')
  }

  async end() {
    this.ended = true
    clearInterval(this.clock)
    if (this.client.connected && !this.fenced) {
      await this.client.publishAsync(`${this.topics}/worker/${this.name}`, '', { retain: true, qos: 1 }).catch(() => {})
    }
    await this.client.endAsync(!this.client.connected)
    if (this.leaving instanceof Error) this.reject(this.leaving)
    else this.resolve(this.leaving)
  }
}

function readKey(file) {
  const text = fs.readFileSync(file, 'utf8').trim()
  if (!/^[0-9a-f]{64}$/i.test(text)) throw new TypeError(`no key of 64 hex digits in ${file}`)
  return Buffer.from(text, 'hex')
}

const keyOf = ({ study, trial, fence }) => `${study}.${trial}.${fence}`

function fieldsOf(value) {
  if (typeof value === 'number') return { value } // NaN becomes null, and the daemon takes that for what it is
  if (value && typeof value === 'object') return value
  throw new TypeError(`not a number or an object: ${value}`)
}

/** The first 4 KiB of UTF-8, which is what the daemon keeps of an error. */
const cut = text => Buffer.from(text).subarray(0, 4096).toString()

/** Writes a file so that it is whole or absent after a crash of the machine. */
function write(folder, name, text) {
  const sync = (path, flags, act = () => {}) => {
    const file = fs.openSync(path, flags)
    try { act(file); fs.fsyncSync(file) } finally { fs.closeSync(file) }
  }
  sync(join(folder, `${name}.new`), 'w', file => fs.writeSync(file, text))
  fs.renameSync(join(folder, `${name}.new`), join(folder, name))
  sync(folder, 'r')
}
