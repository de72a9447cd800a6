/* Lets Java on a host of the lab see 65536 as its limit of open files, where the machine allows its hosts less and Elasticsearch,
   bound to other than loopback, insists on it. test_ha.py builds it. */
#include <dlfcn.h>
#include <string.h>

struct limits { unsigned long soft, hard; };
extern char *program_invocation_short_name;

static int ask(const char *name, int resource, struct limits *found) {
  int (*real)(int, struct limits *) = dlsym((void *)-1l /* RTLD_NEXT */, name);
  int result = real(resource, found);
  if (resource == 7 /* RLIMIT_NOFILE */ && !result && found->hard < 65536 && !strcmp(program_invocation_short_name, "java"))
    found->soft = found->hard = 65536;
  return result;
}

int getrlimit(int resource, struct limits *found) { return ask("getrlimit", resource, found); }
int getrlimit64(int resource, struct limits *found) { return ask("getrlimit64", resource, found); }
