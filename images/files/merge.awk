# Adds the lines of the file `extra` to a configuration file, in the way of its kind; the result goes to standard output.
function key_of(line) {
  match(line, /^[^:=]+/)
  line = substr(line, RSTART, RLENGTH)
  gsub(/[ \t]/, "", line)
  return line
}
function print_additions(    i) {
  for (i = 1; i <= count; i++) print added[i]
}
BEGIN {
  name = ARGV[1]
  kind = name ~ /\.xml$/ ? "xml" : name ~ /\.ya?ml$/ ? "yaml" : name ~ /\.toml$/ ? "toml" : "lines"
  while ((getline line < extra) > 0) {
    if (kind == "toml" && line ~ /^[ \t]*(#.*)?$/) continue
    added[++count] = line
    if (kind == "toml") {
      path = key_of(line)
      if (path !~ /\./) { # a key of no section: it takes the place of the tables of its name
        value = line
        sub(/^[^=]*=[ \t]*/, "", value)
        whole[path] = value
        continue
      }
      section = path
      sub(/\.[^.]*$/, "", section)
      key = path
      sub(/^.*\./, "", key)
      value = line
      sub(/^[^=]*=[ \t]*/, "", value)
      values[section, key] = value
      sections[section] = sections[section] (sections[section] == "" ? "" : "\n") key
    } else if (kind == "yaml" && line ~ /^[^ #-][^:]*:/) replaced[key_of(line)] = 1
  }
}
function finish_section(    keys, n, i) {
  n = split(sections[current], keys, "\n")
  for (i = 1; i <= n; i++) if (!((current, keys[i]) in done)) print keys[i] " = " values[current, keys[i]]
  finished[current] = 1
}
kind == "xml" && /<\/configuration>/ { print_additions(); count = 0 }
kind == "yaml" && /^[^ #-][^:]*:/ { if (key_of($0) in replaced) next }
kind == "toml" && NR == 1 { for (path in whole) print path " = " whole[path] }
kind == "toml" && /^\[/ {
  table = $0
  gsub(/[][ \t]/, "", table)
  dropped = table in whole
}
kind == "toml" && dropped { next }
kind == "toml" && /^\[/ {
  if (current != "") finish_section()
  current = $0
  gsub(/[][ \t]/, "", current)
}
kind == "toml" && /^[^#[][^=]*=/ && ((current, key_of($0)) in values) {
  print key_of($0) " = " values[current, key_of($0)]
  done[current, key_of($0)] = 1
  next
}
{ print }
END {
  if (kind == "yaml" || kind == "lines") print_additions()
  if (kind == "toml") {
    if (current != "") finish_section()
    for (current in sections) if (!(current in finished)) {
      print "[" current "]"
      finish_section()
    }
  }
}
