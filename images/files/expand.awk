# Puts values of the environment in the place of @{NAME} and @{NAME:-default}.
{
  rest = $0
  text = ""
  while (match(rest, /@\{[A-Z_]+(:-[^}]*)?\}/)) {
    token = substr(rest, RSTART + 2, RLENGTH - 3)
    text = text substr(rest, 1, RSTART - 1)
    rest = substr(rest, RSTART + RLENGTH)
    divider = index(token, ":-")
    name = divider ? substr(token, 1, divider - 1) : token
    if (name in ENVIRON && ENVIRON[name] != "") text = text ENVIRON[name]
    else if (divider) text = text substr(token, divider + 2)
    else {
      print "run: " file " needs the variable " name ", which is not set. Next: give it to the container" > "/dev/stderr"
      exit 1
    }
  }
  print text rest
}
