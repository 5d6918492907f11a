import java.net.InetSocketAddress;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Callable;
import net.spy.memcached.*;

/** spymemcached, text and binary: a line for each check that holds. */
class Api {
    static void check(String name, Callable<Boolean> holds) {
        boolean done;
        try { done = holds.call(); } catch (Throwable error) { done = false; }
        System.out.println((done ? "ok " : "not ") + name);
    }

    public static void main(String[] arguments) throws Exception {
        InetSocketAddress at = new InetSocketAddress("127.0.0.1", Integer.parseInt(arguments[0]));
        for (String dialect : List.of("text", "binary")) {
            ConnectionFactory factory = dialect.equals("text") ? new DefaultConnectionFactory() : new BinaryConnectionFactory();
            MemcachedClient client = new MemcachedClient(factory, List.of(at));
            String key = "java:" + dialect, name = dialect + ": ";
            check(name + "set and get", () -> client.set(key, 60, "v").get() && "v".equals(client.get(key)));
            check(name + "add", () -> {
                client.delete(key + ":a").get();
                return client.add(key + ":a", 60, "v").get() && !client.add(key + ":a", 60, "w").get();
            });
            check(name + "cas", () -> {
                long token = client.gets(key).getCas();
                return client.cas(key, token, "w") == CASResponse.OK && client.cas(key, token, "x") == CASResponse.EXISTS;
            });
            check(name + "counters", () -> {
                client.delete(key + ":n").get();
                return client.incr(key + ":n", 2, 5) == 5 && client.incr(key + ":n", 2) == 7 && client.decr(key + ":n", 3) == 4;
            });
            check(name + "several", () -> {
                client.set(key + ":1", 60, "a").get();
                client.set(key + ":2", 60, "b").get();
                return client.getBulk(key + ":1", key + ":2", key + ":3").equals(Map.of(key + ":1", "a", key + ":2", "b"));
            });
            check(name + "touch", () -> client.touch(key, 100).get());
            if (dialect.equals("binary")) check(name + "get and touch", () -> client.getAndTouch(key, 100).getValue() != null);
            for (String part : List.of("", "settings", "slabs", "items"))
                check(name + "stats " + part, () -> client.getStats(part).size() == 1);
            check(name + "version", () -> client.getVersions().get(at).matches("[0-9.]+"));
            check(name + "flush", () -> client.flush().get() && client.get(key) == null);
            client.shutdown();
        }
        System.exit(0);
    }
}
