#!/usr/bin/env node
/* Is this the record that was written? Checks a log of bayesd offline, with none of bayesd's code.

    node bayesd-verify.mjs FILE [--key KEY] [--head NOTES]

FILE is a log (SQLite; needs Node 22.5), an export of one (JSON lines) or an audit pack (zip); it is only read. The rules:
 1. An event is a line of JSON and its hash SHA-256(0x00 || line). `seq` counts 1, 2, 3, ... and `prev` is the
    hash of the event before it: who changes one event must change all that follow.
 2. A signed note says how many events there were and the root of the Merkle tree over their hashes (RFC 9162,
    section 2.1): who changes any event, and all that follow, has another root than a note kept elsewhere.
 3. An operator who put an old copy back gives up the heads behind it: event log.repaired says why, and the key of
    the log signs which. Such a head excuses nothing else, and nothing but the key from elsewhere proves it.
 4. In a pack, manifest.txt has the SHA-256 of each file and seal.txt, if there is one, signs manifest.txt. A pack
    may have events of other studies by hash alone: that they are of others is what the seal says, and nothing else.
    study.json has the spec that the events declare, and winners with the parameters and the value that they have.
Events may refer to free text by ref = SHA-256(salt || text); a text may be redacted, but not be another one.
Exit: 0 verified, 1 not verified, 2 could not be looked at. */
import { createHash, createPublicKey, verify as ed25519 } from 'node:crypto'
import { readFileSync, statSync } from 'node:fs'
import { pathToFileURL } from 'node:url'
import { isDeepStrictEqual, parseArgs } from 'node:util'
import { crc32, inflateRawSync } from 'node:zlib'

const NO_SEAL = 'no seal: events of the study may have been left out; ask for a sealed pack, or one made with --whole'
const HEAD = /^bayesd\/(.+)\n(0|[1-9][0-9]{0,15})\n([A-Za-z0-9+/=]+)(?:\nbranch ([1-9][0-9]{0,15}))?$/

class Failed extends Error {}
const need = (holds, where, why) => { if (!holds) throw new Failed(`FAILED at ${where}: ${why}`) }
const say = (what, count, remark = '') =>
  console.log(`${what.padEnd(14)}${String(count).padStart(8)}  OK${remark && ', '}${remark}`)
const bytes = (...parts) => Buffer.concat(parts.map(part => typeof part === 'string' ? Buffer.from(part) : part))
const sha = (...parts) => createHash('sha256').update(bytes(...parts)).digest()
const text = data => new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(data)
const lines = data => text(data).split('\n').filter(line => line)
const rawLines = data => data.toString('latin1').split('\n').filter(line => line).map(line => Buffer.from(line, 'latin1'))

/** Rule 1 for rows of seq, line, hash and copies of parts of the line, of which all but the line may be missing.
    A pack gives the hashes of all events. Answers with the log's id, all hashes, its keys and repairs, how many rows. */
function checkEvents(rows, given) {
  let id, where, count = 0, seq = 0
  const hashes = given ?? [], named = [], repairs = []
  try {
    for (const [told, line, leaf, ...beside] of rows) {
      const before = seq, last = given ? given.length : seq + 1
      where = `seq ${seq + 1}`
      const event = JSON.parse(text(line)), { prev, log, data, type } = event, digest = sha('\0', line)
      if ([event.seq, prev, log, data].includes(undefined)) throw new SyntaxError()
      need(Number.isInteger(event.seq) && before < event.seq && event.seq <= last && (told ?? event.seq) === event.seq,
        where, 'it is not in its place')
      seq = event.seq
      where = `seq ${seq}`
      need(digest.equals(given ? given[seq - 1] : leaf ?? digest), where, 'its hash is not that of its line')
      need(prev === (seq > 1 ? hashes[seq - 2].toString('hex') : '0'.repeat(64)), where, 'its prev is not the hash before it')
      need(log === (id ?? log), where, 'it is of another log')
      need(!beside.length || ['type', 'study', 'trial', 'actor', 'cmd'].every((key, i) => beside[i] === (event[key] ?? null)),
        where, 'what stands beside its line is not what the line says')
      id = log
      count++
      if (!given) hashes.push(digest)
      if (type === 'daemon.started' && 'key' in data) named.push(data.key)
      if (type === 'log.repaired' && (data.signature ?? null) !== null) repairs.push({ seq, prev, data })
    }
  } catch (error) {
    if (error instanceof Failed) throw error
    need(error.code !== 'ERR_SQLITE_ERROR', `seq ${seq + 1}`, 'the file is damaged here')
    need(false, where, 'it is not an event in JSON')
  }
  need(count, 'seq 1', 'there is no event')
  say('events', count, count === hashes.length ? '' : `of ${hashes.length}, the others by hash alone`)
  return { id, hashes, named, repairs, count }
}

/** Size -> root of the Merkle tree over the first `size` hashes, in base64. */
function roots(hashes, sizes) {
  const found = new Map([['0', sha().toString('base64')]]), peaks = []  // roots of the full subtrees, the largest first
  for (let [n, leaf] of hashes.entries()) {
    for (let carry = n; carry & 1; carry >>= 1) leaf = sha('\x01', peaks.pop(), leaf)
    peaks.push(leaf)
    if (sizes.has(String(n + 1))) {
      const root = peaks.reduceRight((right, peak) => sha('\x01', peak, right))
      found.set(String(n + 1), root.toString('base64'))
    }
  }
  return found
}

/** Ed25519 over the text of a note by a key, name+id+base64(1 || public key). */
function isSigned(said, signatures, keys) {
  for (const key of keys) {
    const [name] = key.split('+', 1), raw = Buffer.from(key.slice(name.length + 10), 'base64')
    for (const line of signatures.split('\n')) {
      const mark = Buffer.from(line.split(' ').at(-1), 'base64')
      if (!line.startsWith(`\u2014 ${name} `) || !mark.subarray(0, 4).equals(sha(name, '\n', raw).subarray(0, 4))) continue
      const der = bytes(Buffer.from('302a300506032b6570032100', 'hex'), raw.subarray(1))     // RFC 8410
      try {
        const publicKey = createPublicKey({ key: der, format: 'der', type: 'spki' })
        if (ed25519(null, bytes(said, '\n'), publicKey, mark.subarray(4))) return true
      } catch {}        // whatever is wrong with it, it is no signature
    }
  }
  return false
}

/** 1: signed. 0: there is no key. */
function checkSignature(said, signatures, keys, where) {
  const signed = isSigned(said, signatures, keys)
  need(signed || !keys.length, where, 'the key did not sign this note')
  return Number(signed)
}

/** What a head says: log, size, root, and the repair behind which it was made, its branch. Null: it is no head. */
function readHead(said) {
  const found = HEAD.exec(said)
  return found && { log: found[1], size: Number(found[2]), root: found[3], branch: Number(found[4] ?? 0) }
}

/** Rule 3. The repair that gave this head up, if the key signed it: that head itself, or one of a branch that
    ended there, behind what both histories have and not beyond the head that was given up. */
function givenUp(said, id, repairs, keys) {
  let ended = 0
  for (const { seq, prev, data } of repairs) {
    const head = String(data.accepted).split('\n\n')[0], accepted = readHead(head), shared = data.shared || 0
    const signed = [`bayesd/${id}/repair`, `behind ${prev}`, ...head.split('\n').slice(1), `shared ${shared}`,
      `fences from ${data.fences_from || 0}`].join('\n')
    if (accepted && accepted.log === id && (isDeepStrictEqual(said, accepted) ||
        (said.branch !== repairs.at(-1).seq && [ended, accepted.branch].includes(said.branch) &&
         shared < said.size && said.size <= accepted.size)) &&
        isSigned(signed, `\u2014 bayesd/${id} ${data.signature}`, keys)) return `at seq ${seq}: ${data.reason}`
    ended = seq
  }
}

/** Rule 2. Notes stand one after the other: text, empty line, signatures, empty line. How many are signed. */
function checkNotes(what, notes, { id, hashes, repairs }, keys, isTrusted) {
  const parts = notes.replace(/^\n+|\n+$/g, '').split('\n\n').filter(part => part)
  const all = [], gone = new Map()
  for (let i = 0; i < parts.length; i += 2) all.push([`${parts[i]}\n`.split('\n')[1], parts[i], parts[i + 1] ?? ''])
  const found = roots(hashes, new Set(all.map(([size]) => size)))
  let good = 0, signed = 0
  for (const [size, said, signatures] of all.sort(([a], [b]) => a.length - b.length || (a > b) - (a < b))) {
    need(said.split('\n')[0] === `bayesd/${id}`, `seq ${size}`, 'a note of another log')
    const isOurs = checkSignature(said, signatures, keys, `seq ${size}`), head = readHead(said)
    need(head, `seq ${size}`, 'it is not a note of a head')
    const repair = found.get(size) !== head.root && givenUp(head, id, repairs, keys)
    if (repair) {
      need(isTrusted, `seq ${size}`, 'this head was given up, says the log; only --key can tell if that is true')
      gone.set(repair, (gone.get(repair) ?? 0) + 1)
      continue
    }
    need(found.has(size), `seq ${hashes.length + 1}`, `it is missing: a note is about ${size} events`)
    need(head.root === found.get(size), `seq ${size}`,
      `events ${good + 1} to ${size} are not all those that a note is about`)
    good = Number(size)
    signed += isOurs
  }
  say(what, all.length, all.length ? `${signed} signed, the newest is about ${good} of ${hashes.length} events` : '')
  for (const [repair, count] of gone)
    console.log(`${count} of the ${what} ${count === 1 ? 'was' : 'were'} given up by a repair ${repair}`)
  return signed
}

function checkTexts(texts) {
  for (const { ref, salt, text } of texts)
    need(sha(salt, text).toString('hex') === ref, `text ${ref}`, 'it is not the one that was told')
  say('texts', texts.length)
}

/** Rule 4. Is there a seal? */
function checkFiles(files, id, keys) {
  const listed = new Map(lines(Buffer.from(files.get('manifest.txt'))).map(line => [line.slice(66), line.slice(0, 64)]))
  for (const name of [...new Set([...files.keys(), ...listed.keys()])].sort()) {
    if (name !== 'manifest.txt' && name !== 'seal.txt')
      need(sha(files.get(name) ?? '').toString('hex') === listed.get(name), name, 'it is not the file that was packed')
  }
  say('files', listed.size)
  if (!files.has('seal.txt')) return 0
  const [said, signatures] = text(files.get('seal.txt')).split(/\n\n(.*)/s)
  const signed = checkSignature(said, signatures ?? '', keys, 'seal.txt')
  const digest = sha(files.get('manifest.txt')).toString('hex')
  need(said === `bayesd/${id}/pack\n${digest}`, 'seal.txt', 'it seals another pack')
  say('seal', 1, `${signed} signed`)
  return signed
}

/** Whether a trial keeps the limits of its study. */
const keeps = (spec, said) => (spec.limits ?? []).every(({ name, metric, at_least: low, at_most: high }) => {
  const found = said[metric ?? name] ?? null
  return found !== null && (low ?? found) <= found && found <= (high ?? found)
})

/** Rule 4. The spec and the winners of a pack, by the events in it. */
function checkStudy(files) {
  const about = JSON.parse(text(files.get('study.json'))), params = new Map(), values = new Map(), better = new Map()
  let spec
  for (const line of lines(files.get('events.jsonl'))) {
    const { study, type, trial, data } = JSON.parse(line), completed = type === 'trial.completed'
    if (study !== about.study) continue
    spec = data.spec ?? spec
    if (['trial.proposed', 'trial.imported'].includes(type) && !params.has(trial)) params.set(trial, data.params)
    if (completed || (type === 'trial.imported' && (!values.has(trial) || data.result)))
      values.set(trial, completed || (data.state ?? 'complete') === 'complete' ? data.values : null)
    else if (type === 'outcome.voided') values.set(trial, null)
  }
  need(spec && isDeepStrictEqual(about.spec, spec), 'study.json', 'its spec is not the one in the events')
  const [goal] = spec.objectives?.length ? spec.objectives : [{ name: spec.metric || 'value', direction: spec.direction }]
  for (const [trial, said] of values) if ((said?.[goal.name] ?? null) !== null) better.set(trial, said[goal.name])
  const mean = trials => trials.reduce((sum, trial) => sum + better.get(trial), 0) / trials.length
  const near = (a, b) => Math.abs(a - b) <= 1e-9 * Math.max(Math.abs(a), Math.abs(b))
  const sign = goal.direction === 'maximize' ? -1 : 1, points = [] // trials at one point are one candidate
  for (const trial of better.keys()) {
    const same = points.find(([first]) => isDeepStrictEqual(params.get(first), params.get(trial)))
    same ? same.push(trial) : points.push([trial])
  }
  const fair = points.filter(same => same.every(trial => keeps(spec, values.get(trial))))
  need(isDeepStrictEqual(about.winner, about.rules[about.winner.rule]), 'study.json', 'its winner is another by its rule')
  for (const [rule, won] of Object.entries(about.rules)) {
    const { trial, value } = won, trials = won.evaluations?.length ? won.evaluations : [trial], point = params.get(trial)
    need([trial, ...trials].every(each => better.has(each)) ? isDeepStrictEqual(won.params, point) && near(value, mean(trials))
      && trials.every(each => isDeepStrictEqual(params.get(each), point)) : !better.size, 'study.json',
    'a winner is not a trial with that value in the events')
    need(rule !== 'best' || !better.has(trial) || fair.every(same => near(value, mean(same)) ||
      sign * value < sign * mean(same)), 'study.json', 'another trial is better')
  }
  say('study.json', 1, `its spec and winners are those of ${better.size} complete trials`)
}

/** The files of a zip, by its directory at the end (APPNOTE 4.3.12, 4.3.16); not its 64 bit form. */
function unzip(path, zip) {
  const files = new Map(), end = zip.lastIndexOf(bytes('PK\x05\x06')), count = zip.readUInt16LE(end + 10)
  for (let i = 0, at = zip.readUInt32LE(end + 16); i < count; i++) {
    if (zip.readUInt32LE(at) !== 0x02014b50) throw new Error()
    const [crc, packed] = [zip.readUInt32LE(at + 16), zip.readUInt32LE(at + 20)], from = zip.readUInt32LE(at + 42)
    const [name, extra, comment] = [28, 30, 32].map(offset => zip.readUInt16LE(at + offset))
    const start = from + 30 + zip.readUInt16LE(from + 26) + zip.readUInt16LE(from + 28)
    const raw = zip.subarray(start, start + packed), data = zip.readUInt16LE(at + 10) ? inflateRawSync(raw) : raw
    if (crc32(data) !== crc) throw new Error()
    const called = text(zip.subarray(at + 46, at + 46 + name))
    need(!files.has(called), path, 'two files have one name')
    files.set(called, data)
    at += 46 + name + extra + comment
  }
  return files
}

async function verify(path, keys, heads) {
  if (statSync(path, { throwIfNoEntry: false })?.isDirectory())
    throw Object.assign(new Error(`${path} is a folder: give the .zip itself`), { syscall: 'read' })
  const data = readFileSync(path), rows = data => rawLines(data).map(line => [null, line, null])
  let record, notes = '', files
  if (data.subarray(0, 16).equals(bytes('SQLite format 3\0'))) {
    const { DatabaseSync } = await import('node:sqlite'), url = pathToFileURL(path)     // a WAL beside it has events, too
    url.search = statSync(`${path}-wal`, { throwIfNoEntry: false })?.size ? 'mode=ro' : 'mode=ro&immutable=1'
    const log = new DatabaseSync(url, { readOnly: true })
    record = checkEvents(log.prepare(`SELECT seq, CAST(body AS BLOB) a, CAST(hash AS BLOB) b, type, study, trial, actor,
      cmd FROM event ORDER BY seq`).iterate().map(Object.values))
    notes = log.prepare('SELECT CAST(note AS BLOB) note FROM checkpoint').all().map(row => text(row.note)).join('\n')
    if (log.prepare("SELECT 1 FROM sqlite_schema WHERE name = 'text'").get())
      checkTexts(log.prepare('SELECT ref, salt, text FROM text').all())
  } else if (data.subarray(0, 2).equals(bytes('PK'))) {
    files = unzip(path, data)
    const get = name => Buffer.from(files.get(name))       // fails if it is not there
    record = checkEvents(rows(get('events.jsonl')), lines(get('hashes.txt')).map(line => Buffer.from(line, 'hex')))
    notes = text(get('checkpoints.txt'))
    record.named = lines(get('key.txt'))
    const texts = lines(files.get('texts.jsonl') ?? Buffer.alloc(0)).map(line => JSON.parse(line))
    checkTexts(texts.map(each => ({ ...each, salt: Buffer.from(each.salt, 'hex') })))
  } else record = checkEvents(rows(data))
  const { id, hashes, named, count } = record, all = keys.length ? keys : named
  let signed = checkNotes('notes', notes, record, all, true)
  for (const head of heads) signed += checkNotes('outside notes', text(readFileSync(head)), record, all, keys.length)
  const sealed = files ? checkFiles(files, id, all) : 1, whole = count === hashes.length
  if (files) checkStudy(files)
  need(signed || !keys.length, 'key', 'it signed nothing here')
  if (!signed && !heads.length) console.log('Nothing here is signed: the parts fit, but the whole could have been made anew')
  else if (!signed) console.log('No key for the outside notes is known: they are worth what their source is')
  else if (!keys.length && (files || !heads.length))
    console.log("The key is the file's own word; compare it with a copy from elsewhere:", named.join(' '))
  if (!whole && !sealed) {
    need(!keys.length, 'seal.txt', NO_SEAL)
    console.log(`WARNING: ${NO_SEAL}`)
  }
  console.log(`VERIFIED: ${whole ? `events 1 to ${count}` : `${count} of ${hashes.length} events`} of log ${id}` +
    (whole ? '' : ' (the others by hash alone)') +
    (sealed ? '' : '; no seal: NOBODY VOUCHES for report.html, study.json, texts and why/'))
}

const many = { type: 'string', multiple: true, default: [] }
const { values, positionals: [file = ''] } = parseArgs({ allowPositionals: true, options: { key: many, head: many } })
await verify(file, values.key, values.head).catch(error => {
  if (error.code === 'ERR_UNKNOWN_BUILTIN_MODULE')
    console.error(`Node ${process.version} has no SQLite: take Node 22.15 or newer, or bayesd-verify.py, or an export`)
  else if (error.syscall) console.error(error.message)
  else console.log(error instanceof Failed ? error.message : `FAILED at ${file}: it is not whole`)
  process.exitCode = error.syscall || error.code === 'ERR_UNKNOWN_BUILTIN_MODULE' ? 2 : 1
})
